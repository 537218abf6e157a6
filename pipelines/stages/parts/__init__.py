"""Code that several stages share, and parts of long ones. It counts in the fingerprint; code that no stage calls is elsewhere."""
