"""Other people's tools open what we make and make what we open."""
