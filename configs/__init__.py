"""Recipes: functions that return one frozen, complete job."""
