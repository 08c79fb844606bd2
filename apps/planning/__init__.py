"""What is known before work starts: checks, estimates and sharding plans."""
