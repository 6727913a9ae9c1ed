"""The tests, one folder a kind; `kit` is what they stand on."""
