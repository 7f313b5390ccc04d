"""This project's data sets, models and tasks."""
