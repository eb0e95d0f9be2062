"""What keeps a lake in order without anybody asking: nightly maintenance, sensors, the report."""
