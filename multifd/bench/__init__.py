"""Evidence before a method is chosen: measured migrations, what an image is made of, advice, stored as documents."""
