"""What carries main.py, FaceAging.py and ops.py and is not the paper: one trade a room; skip it at first."""
