"""The method, pure: functions of arrays and tensors, with no import beyond numpy and torch."""
