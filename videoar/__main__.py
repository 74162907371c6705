"""`python -m videoar`: the command `videoar`, where its script is not on the path."""

from videoar.cli import app

if __name__ == "__main__":
    app(prog_name="videoar")
