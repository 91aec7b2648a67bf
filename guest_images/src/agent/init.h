// SPDX-License-Identifier: Apache-2.0
/*
 * The agent as the guest's first process: file systems, kernel modules, virtio ports.
 *
 * The VMM appends /pyvmm to the initramfs and names /pyvmm/agent as rdinit=. If the kernel command
 * line has pyvmm.init=PATH, that program becomes the first process once the modules are loaded, and
 * the agent continues beside it; so the agent keeps mounts of its own below /pyvmm.
 */
#ifndef AGENT_INIT_H
#define AGENT_INIT_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define OWN "/pyvmm"
#define MODULES OWN "/modules"
#define PORTS OWN "/sys/class/virtio-ports"
#define PORT_TIMEOUT_MS 10000

/* Report a failure on the console and end the machine: nothing useful can run any more. */
static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *form, ...)
{
	va_list arguments;

	va_start(arguments, form);
	fprintf(stderr, "pyvmm agent: ");
	vfprintf(stderr, form, arguments);
	fprintf(stderr, "\n");
	va_end(arguments);
	if (getpid() == 1)
		reboot(RB_AUTOBOOT);
	_exit(1);
}

static void sleep_ms(long ms)
{
	struct timespec pause = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&pause, NULL);
}

static void mount_on(const char *type, const char *directory)
{
	mkdir(directory, 0755);
	/* EBUSY: the kernel has mounted devtmpfs itself; others show up when the mount is used. */
	mount(type, directory, type, 0, NULL);
}

static void mount_own(void)
{
	mkdir(OWN, 0755);
	mount_on("proc", OWN "/proc");
	mount_on("sysfs", OWN "/sys");
	mount_on("devtmpfs", OWN "/dev");
}

/* Mount what a program expects; only the first process of a guest without another init does. */
static void mount_usual(void)
{
	mount_on("proc", "/proc");
	mount_on("sysfs", "/sys");
	mount_on("devtmpfs", "/dev");
	mkdir("/dev/pts", 0755);
	mount_on("devpts", "/dev/pts");
	mkdir("/tmp", 01777);
	mkdir("/root", 0700);
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

/* Load the modules that MODULES/order lists, one file name a line. */
static void load_modules(void)
{
	char name[NAME_MAX + 2], path[sizeof(MODULES) + NAME_MAX + 2];
	FILE *order = fopen(MODULES "/order", "re");
	int fd;

	if (!order)
		return;
	while (fgets(name, sizeof(name), order)) {
		name[strcspn(name, "\n")] = 0;
		snprintf(path, sizeof(path), MODULES "/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		/* EEXIST: it is loaded. ENODEV: there is no such device. */
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST && errno != ENODEV))
			fprintf(stderr, "pyvmm agent: %s: %s\n", name, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	fclose(order);
}

/* Copy the value of pyvmm.init= on the kernel command line to `init`; false if there is none. */
static int read_init(char *init, size_t size)
{
	static const char key[] = "pyvmm.init=";
	char line[4096];
	ssize_t length;
	int fd = open(OWN "/proc/cmdline", O_RDONLY | O_CLOEXEC);

	length = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);
	if (fd >= 0)
		close(fd);
	line[length > 0 ? length : 0] = 0;
	for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
		if (!strncmp(word, key, sizeof(key) - 1)) {
			snprintf(init, size, "%s", word + sizeof(key) - 1);
			return 1;
		}
	}
	return 0;
}

/* Find the port called `name`, such as "vport0p1"; false if there is none. */
static int find_port(const char *name, char *found, size_t size)
{
	char path[PATH_MAX], text[128];
	DIR *ports = opendir(PORTS);
	struct dirent *entry;
	FILE *file;
	int matches = 0;

	while (ports && !matches && (entry = readdir(ports))) {
		snprintf(path, sizeof(path), PORTS "/%s/name", entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fgets(text, sizeof(text), file)) {
			text[strcspn(text, "\n")] = 0;
			matches = !strcmp(text, name);
		}
		fclose(file);
		if (matches)
			snprintf(found, size, "%.63s", entry->d_name);
	}
	if (ports)
		closedir(ports);
	return matches;
}

/* Open a port's device node; -1 with errno after PORT_TIMEOUT_MS. The node appears after the port, and
 * before the driver has entered the port in its list: ENXIO until then. */
static int open_port(const char *device)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), OWN "/dev/%s", device);
	for (int ms = 0; ms < PORT_TIMEOUT_MS; ms++) {
		/* A blocking write spins in the kernel until the VMM has taken the data. */
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0 || (errno != ENOENT && errno != ENXIO))
			return fd;
		sleep_ms(1);
	}
	return -1;
}

#endif
