"""Vectors that follow the hour: both towers made of the newest interactions of everybody, in closed form."""
