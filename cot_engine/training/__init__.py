"""From data to a trained model: rows, their check, the teacher, fine-tuning, judges."""
