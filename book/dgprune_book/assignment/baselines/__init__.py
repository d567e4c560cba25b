"""The criteria to beat: submissions like any other, one file each."""
