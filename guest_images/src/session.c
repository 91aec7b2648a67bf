// SPDX-License-Identifier: Apache-2.0
/*
 * session TTY COMMAND [ARGUMENT...]: run a command in a session of its own on a terminal.
 *
 * The terminal becomes the controlling one, so that job control works and ^C reaches the program in
 * the foreground, with the signal dispositions of a fresh login whatever the parent ignored. When
 * the leader of a session ends, Linux discards output that the terminal has not sent yet; the leader
 * here therefore outlives the command, waits until everything is sent, and returns its exit status.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* Signals from a terminal; a shell without job control ignores some of them in background jobs. */
static const int terminal_signals[] = { SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU };

static void on_terminal_signals(void (*disposition)(int))
{
	for (size_t i = 0; i < sizeof(terminal_signals) / sizeof(terminal_signals[0]); i++)
		signal(terminal_signals[i], disposition);
}

static void take_terminal(const char *name)
{
	int fd;

	setsid();
	fd = open(name, O_RDWR);
	if (fd < 0 || ioctl(fd, TIOCSCTTY, 0)) {
		perror(name);
		exit(126);
	}
	for (int target = 0; target <= 2; target++)
		dup2(fd, target);
	if (fd > 2)
		close(fd);
}

int main(int argc, char **argv)
{
	int status;
	pid_t child;

	if (argc < 3) {
		fprintf(stderr, "usage: session TTY COMMAND [ARGUMENT...]\n");
		return 126;
	}
	take_terminal(argv[1]);
	child = fork();
	if (child < 0) {
		perror("fork");
		return 126;
	}
	if (!child) {
		on_terminal_signals(SIG_DFL);
		execvp(argv[2], argv + 2);
		perror(argv[2]);
		_exit(127);
	}
	on_terminal_signals(SIG_IGN);
	waitpid(child, &status, 0);
	tcdrain(STDOUT_FILENO);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
