-- more than one trip in a hundred without a zone: the lookup is not that of these trips
SELECT count(*) AS unknown
FROM trips_enriched
WHERE pickup_zone IS NULL OR dropoff_zone IS NULL
HAVING count(*) > 0.01 * (SELECT count(*) FROM trips_enriched)
