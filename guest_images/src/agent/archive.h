// SPDX-License-Identifier: Apache-2.0
/*
 * agent archive PATH: write a tar archive of a file or directory to standard output.
 *
 * The guest need not have tar. The format is ustar (POSIX.1-1988) with GNU's long names ("L" and
 * "K" entries). Names are relative to the directory that holds PATH. Regular files, directories and
 * symbolic links are archived; for anything else there is a warning, and the status becomes 1.
 */
#ifndef AGENT_ARCHIVE_H
#define AGENT_ARCHIVE_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAR_BLOCK 512

struct tar_header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type;
	char link[100], magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155];
	char pad[12];
} __attribute__((packed));

static int archive_status;
static size_t archive_strip; /* length of the directory that holds PATH, and its slash */

static void archive_warn(const char *path, const char *reason)
{
	fprintf(stderr, "%s: %s\n", path, reason);
	archive_status = 1;
}

static void archive_write(const void *data, size_t length)
{
	if (fwrite(data, 1, length, stdout) != length) {
		fprintf(stderr, "standard output: %s\n", strerror(errno));
		exit(1);
	}
}

static void archive_pad(unsigned long long length)
{
	static const char zeros[TAR_BLOCK];

	archive_write(zeros, (TAR_BLOCK - length % TAR_BLOCK) % TAR_BLOCK);
}

static void archive_header(const char *name, const char *link, char type, const struct stat *status,
			   unsigned long long size)
{
	struct tar_header header = { .type = type, .magic = "ustar", .version = { '0', '0' } };
	unsigned int sum = 0;

	/* Longer ones have been written before, in an entry of their own. */
	memcpy(header.name, name, strnlen(name, sizeof(header.name)));
	memcpy(header.link, link, strnlen(link, sizeof(header.link)));
	snprintf(header.mode, sizeof(header.mode), "%07o", status->st_mode & 07777);
	snprintf(header.uid, sizeof(header.uid), "%07o", 0);
	snprintf(header.gid, sizeof(header.gid), "%07o", 0);
	snprintf(header.size, sizeof(header.size), "%011llo", size);
	snprintf(header.mtime, sizeof(header.mtime), "%011llo", (unsigned long long)status->st_mtime);
	memset(header.checksum, ' ', sizeof(header.checksum));
	for (size_t i = 0; i < sizeof(header); i++)
		sum += ((unsigned char *)&header)[i];
	snprintf(header.checksum, sizeof(header.checksum), "%06o", sum);
	archive_write(&header, sizeof(header));
}

static void archive_long(const char *text, char type)
{
	static const struct stat none;
	size_t length = strlen(text) + 1;

	if (length <= sizeof(((struct tar_header *)0)->name))
		return;
	archive_header("././@LongLink", "", type, &none, length);
	archive_write(text, length);
	archive_pad(length);
}

/* Write the content with the length that the header has, even if the file changes meanwhile. */
static void archive_content(int fd, const char *path, unsigned long long size)
{
	char buffer[32 * 1024];
	unsigned long long left = size;
	ssize_t done;

	while (left) {
		done = read(fd, buffer, left < sizeof(buffer) ? left : sizeof(buffer));
		if (done <= 0) {
			archive_warn(path, done ? strerror(errno) : "it has become shorter");
			memset(buffer, 0, sizeof(buffer));
			done = left < sizeof(buffer) ? left : sizeof(buffer);
		}
		archive_write(buffer, done);
		left -= done;
	}
	archive_pad(size);
}

static void archive_file(const char *path, const char *name)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat status;

	if (fd < 0 || fstat(fd, &status)) {
		archive_warn(path, strerror(errno));
	} else {
		archive_long(name, 'L');
		archive_header(name, "", '0', &status, status.st_size);
		archive_content(fd, path, status.st_size);
	}
	if (fd >= 0)
		close(fd);
}

static int archive_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	const char *name = path + archive_strip;
	char link[PATH_MAX] = "";

	(void)walk;
	if (kind == FTW_NS || kind == FTW_DNR) {
		archive_warn(path, "cannot be read");
	} else if (S_ISREG(status->st_mode)) {
		archive_file(path, name);
	} else if (S_ISDIR(status->st_mode)) {
		archive_long(name, 'L');
		archive_header(name, "", '5', status, 0);
	} else if (S_ISLNK(status->st_mode) && readlink(path, link, sizeof(link) - 1) > 0) {
		archive_long(link, 'K');
		archive_long(name, 'L');
		archive_header(name, link, '2', status, 0);
	} else {
		archive_warn(path, "is no file, directory or symbolic link");
	}
	return 0;
}

static int archive(const char *path)
{
	static const char end[2 * TAR_BLOCK];
	char whole[PATH_MAX], copy[PATH_MAX];

	if (!realpath(path, whole)) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 1;
	}
	strcpy(copy, whole);
	archive_strip = strlen(dirname(copy));
	archive_strip += archive_strip > 1; /* the root directory has its slash already */
	if (nftw(whole, archive_entry, 16, FTW_PHYS))
		archive_warn(path, strerror(errno));
	archive_write(end, sizeof(end));
	if (fflush(stdout))
		archive_warn("standard output", strerror(errno));
	return archive_status;
}

#endif
