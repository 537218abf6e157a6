"""Pictures of any kind on their way to a training set: rules, captions, near duplicates, selection."""
