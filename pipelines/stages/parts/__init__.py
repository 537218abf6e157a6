"""What several stages share, and parts of long ones. Counted in the fingerprint like the stages themselves."""
