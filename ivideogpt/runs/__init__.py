"""One training run as files and as a process. Used by training and by model-based RL; knows no model and no loss."""
