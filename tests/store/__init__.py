"""The promises of the store, each with tests that can fail."""
