"""The two methods and what they stand on, as plain PyTorch: no orchestration in here."""
