"""What ablations and judges came to: rows to findings, findings to pages, tables, logs."""
