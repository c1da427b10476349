"""What differs between model families: image, positions, mask."""
