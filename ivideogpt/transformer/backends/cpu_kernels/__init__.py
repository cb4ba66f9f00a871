"""Compiled passes for CPUs."""
