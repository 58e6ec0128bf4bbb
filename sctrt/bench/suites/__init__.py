"""What is measured, one suite a file: parts that run in processes of their own, and what follows from them."""
