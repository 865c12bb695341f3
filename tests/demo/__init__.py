"""`make demo`: the main job in front of the reader, on a disposable machine."""
