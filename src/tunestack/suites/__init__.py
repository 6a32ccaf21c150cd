"""Suites: several tasks, the same candidates on each, one table with the average."""
