"""The operator's side: directory, mailbox, workers' services and HTTP; it never sees a plaintext key."""
