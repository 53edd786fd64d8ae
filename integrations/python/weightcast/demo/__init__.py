"""`python -m weightcast.demo`: a real language model's weights from four trainers to four servers, every byte proved."""
