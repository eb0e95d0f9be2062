"""Partitions with small files: the job that compacts them, and the sensor that asks for it."""
