/*
 * PostgreSQL's own scanner (src/backend/parser/scan.c), made a program: it reads texts and tells where their tokens
 * are. tests/regress/inputs.sh links it; tests/oracle/scanner.rs asks it.
 *
 * stdin:  `on` or `off` (standard_conforming_strings), a space, a length in decimal, a newline, and that many bytes;
 *         any number of times
 * stdout: for each text a line of `start:end` with spaces between, and `refused` at its end if the scanner refuses
 *         what comes next
 */
#include "postgres.h"

#include <setjmp.h>

#include "mb/pg_wchar.h"
#include "parser/gramparse.h"
#include "parser/parser.h"
#include "parser/scansup.h"

static sigjmp_buf refusal;

/* What the scanner wants of the server around it. An error ends the text, a warning is nothing. */
ErrorContextCallback *error_context_stack = NULL;

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	siglongjmp(refusal, 1);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *fmt,...)
{
	return 0;
}

int
errmsg_internal(const char *fmt,...)
{
	return 0;
}

int
errdetail(const char *fmt,...)
{
	return 0;
}

int
errhint(const char *fmt,...)
{
	return 0;
}

int
errposition(int cursorpos)
{
	return 0;
}

int
geterrcode(void)
{
	return 0;
}

/* The database's encoding is UTF8; texts are not checked, since no token ends by it. */
int
pg_database_encoding_max_length(void)
{
	return 4;
}

int
pg_get_client_encoding(void)
{
	return PG_UTF8;
}

int
pg_mbstrlen_with_len(const char *mbstr, int limit)
{
	return limit;
}

int
pg_mbcliplen(const char *mbstr, int len, int limit)
{
	return len < limit ? len : limit;
}

bool
pg_verifymbstr(const char *mbstr, int len, bool noError)
{
	return true;
}

void
pg_unicode_to_server(pg_wchar c, unsigned char *s)
{
	strcpy((char *) s, "?");
}

static void
scan(char *text)
{
	core_yy_extra_type extra;
	core_YYSTYPE value;
	YYLTYPE		start;
	core_yyscan_t scanner = scanner_init(text, &extra, &ScanKeywords, ScanKeywordTokens);

	if (sigsetjmp(refusal, 0) == 0)
		/* flex puts a zero byte behind the token that it is at; pg_stat_statements relies on it as well. */
		while (core_yylex(&value, &start, scanner) != 0)
			printf("%d:%d ", start, start + (int) strlen(extra.scanbuf + start));
	else
		printf("refused");
	printf("\n");
	fflush(stdout);
	/* What was allocated is left: the program ends with its texts. */
}

int
main(void)
{
	char		setting[4];
	int			length;

	while (scanf("%3s %d", setting, &length) == 2 && getchar() == '\n')
	{
		char	   *text = palloc0(length + 1);

		if (fread(text, 1, length, stdin) != length)
			return 1;
		standard_conforming_strings = strcmp(setting, "on") == 0;
		escape_string_warning = false;
		scan(text);
	}
	return 0;
}
