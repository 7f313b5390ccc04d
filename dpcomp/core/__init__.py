"""What every part stands on: errors, random streams, supports, layouts, addresses, durable files."""
