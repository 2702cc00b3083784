"""The programs that come with the toolkit, one file each. A file dropped in here is tested like the others."""
