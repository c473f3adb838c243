"""What every package needs and none owns."""
