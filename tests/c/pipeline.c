/* libpq: pipeline mode, COPY, prepared statements, and cancelling. Exits 0 when everything is as without a proxy. */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, PQerrorMessage(conn));  \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

enum { STATEMENTS = 500 };

static PGconn *conn;

/* Takes the next result of the pipeline and the NULL that ends it. */
static PGresult *next(void)
{
    PGresult *result = PQgetResult(conn);
    CHECK(result != NULL);
    if (PQresultStatus(result) != PGRES_PIPELINE_SYNC)
        CHECK(PQgetResult(conn) == NULL);
    return result;
}

static void expect(ExecStatusType status, const char *value)
{
    PGresult *result = next();
    CHECK(PQresultStatus(result) == status);
    if (value != NULL)
        CHECK(PQntuples(result) == 1 && strcmp(PQgetvalue(result, 0, 0), value) == 0);
    PQclear(result);
}

static void query(const char *sql)
{
    CHECK(PQsendQueryParams(conn, sql, 0, NULL, NULL, NULL, NULL, 0));
}

static void pipelines(void)
{
    char number[16];
    const char *values[] = {number};

    CHECK(PQenterPipelineMode(conn));
    CHECK(PQsendPrepare(conn, "double", "SELECT $1::int * 2", 1, NULL));
    for (int i = 0; i < STATEMENTS; i++) {
        snprintf(number, sizeof number, "%d", i);
        CHECK(PQsendQueryPrepared(conn, "double", 1, values, NULL, NULL, 0));
    }
    CHECK(PQpipelineSync(conn));
    expect(PGRES_COMMAND_OK, NULL);
    for (int i = 0; i < STATEMENTS; i++) {
        snprintf(number, sizeof number, "%d", 2 * i);
        expect(PGRES_TUPLES_OK, number);
    }
    expect(PGRES_PIPELINE_SYNC, NULL);

    /* An error ends its own part of the pipeline and no other. */
    query("SELECT 'first'");
    query("SELECT 1/0");
    query("SELECT 'skipped'");
    CHECK(PQpipelineSync(conn));
    query("SELECT 'second'");
    CHECK(PQpipelineSync(conn));
    expect(PGRES_TUPLES_OK, "first");
    expect(PGRES_FATAL_ERROR, NULL);
    expect(PGRES_PIPELINE_ABORTED, NULL);
    expect(PGRES_PIPELINE_SYNC, NULL);
    expect(PGRES_TUPLES_OK, "second");
    expect(PGRES_PIPELINE_SYNC, NULL);

    /* Answers are read before the Sync is sent. */
    query("SELECT 'flushed'");
    CHECK(PQsendFlushRequest(conn));
    CHECK(PQflush(conn) == 0);
    expect(PGRES_TUPLES_OK, "flushed");
    query("SELECT 'as well'");
    CHECK(PQpipelineSync(conn));
    expect(PGRES_TUPLES_OK, "as well");
    expect(PGRES_PIPELINE_SYNC, NULL);
    CHECK(PQexitPipelineMode(conn));
}

static void copies(void)
{
    PGresult *result;
    char *line;
    int lines = 0;

    PQclear(PQexec(conn, "DROP TABLE IF EXISTS libpq_copy"));
    PQclear(PQexec(conn, "CREATE TABLE libpq_copy (a int)"));
    /* By the extended protocol, where libpq sends its Sync before it knows of the COPY. */
    result = PQexecParams(conn, "COPY libpq_copy FROM STDIN", 0, NULL, NULL, NULL, NULL, 0);
    CHECK(PQresultStatus(result) == PGRES_COPY_IN);
    PQclear(result);
    for (int i = 0; i < 1000; i++)
        CHECK(PQputCopyData(conn, "12345\n", 6) == 1);
    CHECK(PQputCopyEnd(conn, NULL) == 1);
    result = PQgetResult(conn);
    CHECK(PQresultStatus(result) == PGRES_COMMAND_OK && strcmp(PQcmdTuples(result), "1000") == 0);
    PQclear(result);
    CHECK(PQgetResult(conn) == NULL);

    PQclear(PQexec(conn, "BEGIN"));
    result = PQexec(conn, "COPY libpq_copy TO STDOUT");
    CHECK(PQresultStatus(result) == PGRES_COPY_OUT);
    PQclear(result);
    while (PQgetCopyData(conn, &line, 0) > 0) {
        lines++;
        PQfreemem(line);
    }
    CHECK(lines == 1000);
    result = PQgetResult(conn);
    CHECK(PQresultStatus(result) == PGRES_COMMAND_OK);
    PQclear(result);
    CHECK(PQgetResult(conn) == NULL);
    PQclear(PQexec(conn, "COMMIT"));
}

static void cancels(void)
{
    char error[256];
    PGcancel *cancel = PQgetCancel(conn);
    PGresult *result;
    int done = 0;

    CHECK(cancel != NULL);
    CHECK(PQsendQuery(conn, "SELECT pg_sleep(60)"));
    /* Until it hits: a cancel that comes before the statement runs has nothing to do. */
    while (!done) {
        CHECK(PQcancel(cancel, error, sizeof error));
        usleep(50000);
        CHECK(PQconsumeInput(conn));
        done = !PQisBusy(conn);
    }
    result = PQgetResult(conn);
    CHECK(PQresultStatus(result) == PGRES_FATAL_ERROR);
    CHECK(strcmp(PQresultErrorField(result, PG_DIAG_SQLSTATE), "57014") == 0);
    PQclear(result);
    CHECK(PQgetResult(conn) == NULL);
    PQfreeCancel(cancel);
}

static void single_rows(void)
{
    PGresult *result;
    int rows = 0;

    CHECK(PQsendQuery(conn, "SELECT generate_series(1, 10000)"));
    CHECK(PQsetSingleRowMode(conn));
    while ((result = PQgetResult(conn)) != NULL) {
        rows += PQresultStatus(result) == PGRES_SINGLE_TUPLE;
        PQclear(result);
    }
    CHECK(rows == 10000);
}

int main(void)
{
    conn = PQconnectdb("");
    CHECK(PQstatus(conn) == CONNECTION_OK);
    pipelines();
    copies();
    cancels();
    single_rows();
    PQfinish(conn);
    puts("ok");
    return 0;
}
