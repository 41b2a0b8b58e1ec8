"""Training of the MLIC models: rate-distortion loss, loop, checkpoints and logs
(``docs/training.md``).
"""

from mlic_fast.training.run_config import TrainConfig, TrainingError
from mlic_fast.training.state import load_state
from mlic_fast.training.trainer import Trainer, train

__all__ = ["TrainConfig", "Trainer", "TrainingError", "load_state", "train"]
