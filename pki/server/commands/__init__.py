"""The operator's commands: one module a noun; what each needs is imported when it runs, so that help is fast."""
