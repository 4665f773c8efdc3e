"""Training FaceNet: aligned faces and their damage, a teacher, losses, and the task of the loop."""
