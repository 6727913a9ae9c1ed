"""The outside world behind the ports: where keys are kept, who is told, the broker."""
