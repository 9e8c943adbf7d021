"""Programs that measure, not tests: `python -m tests.tools.NAME`; tests/README.md says what each is for."""
