"""The long forms of tests that break the store on purpose, each with a seed."""
