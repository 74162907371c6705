"""Where the time of a clip goes, against what this machine can do."""
