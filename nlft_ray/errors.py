"""Errors that a user can mend: shown as one message without a stack trace, exit code 2."""


class UserError(Exception):
    """What is wrong, where, what is allowed and what to do, in words for the person who runs the command."""
