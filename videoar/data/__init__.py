"""Video data: built-in sprites and folders of clips."""
