"""What FaceAging and main are built on; skip it at first."""
