"""BYTES: decoding rows and writing Parquet files; knows files, not lakes."""
