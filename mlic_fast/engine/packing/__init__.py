"""From a float checkpoint to integers: the packed model, how it is made and stored."""
