"""What several tests use: tiny models, toy data, runs in processes of their own. No test imports from a test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
