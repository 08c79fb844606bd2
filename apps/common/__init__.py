"""What every command shares: options, errors, jobs and their inputs."""
