"""Side-by-side timing of engines, behind ``mlic-fast bench``."""
