"""What evaluations print: tables, streams and the end of a quickstart."""
