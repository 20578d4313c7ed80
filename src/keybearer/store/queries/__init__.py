"""Queries by noun: named functions, each taking a transaction first; rows in, rows out."""
