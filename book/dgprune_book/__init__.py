"""The book's own code: exercises, assignment, study and figures. The package never imports it."""
